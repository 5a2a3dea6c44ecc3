"""Ray Train: the main thread runs Ray's event loop, and the training function is a thread."""

from __future__ import annotations

from support.jobs.ranks import C10D, LOGGER, MODULE, SITE, STEP, THREADING, main, state

from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Frame, Health, Thread
from workerserver.cluster.read.acting import acting

#: The stack of a worker of Ray 2.51 (``ray/_private/workers/default_worker.py``).
LOOP = main(
    Frame(f"{SITE}/ray/_private/worker.py", 984, "main_loop"),
    Frame(f"{SITE}/ray/_private/workers/default_worker.py", 323, "<module>"),
    state="S",
    wchan="futex_do_wait",
)
RUN = (
    Frame("/job/train.py", 20, "train_func"),
    Frame(f"{SITE}/ray/train/v2/_internal/util.py", 150, "train_fn"),
    Frame(
        f"{SITE}/ray/train/v2/_internal/execution/worker_group/thread_runner.py", 46, "_run_target"
    ),
    Frame(THREADING, 1000, "run"),
    Frame(THREADING, 1043, "_bootstrap_inner"),
    Frame(THREADING, 1014, "_bootstrap"),
)
MONITOR = Thread(
    (
        Frame(
            f"{SITE}/ray/train/v2/_internal/execution/worker_group/thread_runner.py",
            65,
            "_monitor_target",
        ),
        *RUN[3:],
    ),
    "MonitoringThread(train_func)",
    native_id=3,
    state="S",
    wchan="futex_do_wait",
)


def training(*newer: Frame, wchan: str = "hrtimer_nanosleep") -> Thread:
    name = "TrainingThread(train_func)"
    return Thread((*newer, *RUN), name, native_id=2, state="S", wchan=wchan)


def test_the_training_thread_acts() -> None:
    asleep = training(Frame("/job/train.py", 7, "load"))
    assert acting([LOOP, MONITOR, asleep]) is asleep
    own = main(STEP, MODULE, state="S", wchan="hrtimer_nanosleep")
    assert acting([own, asleep]) is own  # here the main thread is the user's


def test_one_process() -> None:
    """No other rank tells where the training function is, and no recorder tells anything."""
    asleep = training(Frame("/job/train.py", 7, "load"))
    health = Health(
        "ok", rank=0, uptime_s=100.0, step=200, step_age_s=20.0, step_median_s=0.01, world_size=1
    )
    looks = [
        Round([state(0, LOOP, MONITOR, asleep, health=health)], 1000.0 + 10 * number)
        for number in range(2)
    ]
    verdict = diagnose(looks, 1)
    assert verdict.sentence == (
        "rank 0 has made no step for 20 s, 2000 times the usual 10 ms, since step 200;"
        " it stands in load(), train.py:7"
    )
    (suspect,) = verdict.suspects
    assert (suspect.reason, suspect.location) == ("stalled", Frame("/job/train.py", 7, "load"))


def test_two_ranks() -> None:
    waiting = training(C10D, LOGGER, wchan="futex_do_wait")
    asleep = training(Frame("/job/train.py", 7, "load"))
    states = [state(0, LOOP, MONITOR, waiting), state(1, LOOP, MONITOR, asleep)]
    verdict = diagnose([Round(states, 1000.0 + 30 * number) for number in range(2)], 2)
    assert "load(), train.py:7" in verdict.sentence
    assert "main_loop" not in verdict.sentence
    assert [each.rank for each in verdict.suspects] == [1]
