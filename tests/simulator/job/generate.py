"""A random job from a seed: what its ranks do when nothing is wrong, and how much can be seen.

:mod:`faults` then plants what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from .faults import plant
from .program import Group, Job, Op, RankPlan, Strand

__all__ = ["LAYOUTS", "Draft", "generate"]

LAYOUTS = ("ddp", "grid", "nested", "pipeline", "ring", "alone")
SHAPES = ((4,), (8,), (16, 4), (1,), (128,))
COLLECTIVES = (
    "all_reduce", "all_reduce", "all_reduce", "all_gather", "all_gather_into_tensor", "broadcast",
    "reduce_scatter_tensor",
)  # fmt: skip


@dataclass(slots=True)
class Draft:
    """A job in the making. *steps*: each rank's usual step. *epochs*: what comes at the end of an
    epoch. *extras*: further threads of each rank. *warm*: steps before anything may be wrong."""

    random: Random
    job: Job
    steps: list[list[Op]] = field(default_factory=list)
    epochs: list[list[Op]] = field(default_factory=list)
    extras: list[list[Strand]] = field(default_factory=list)
    starts: list[list[Op]] = field(default_factory=list)
    warm: int = 3
    trainer: str = "main"
    line: int = 40

    def next_line(self) -> int:
        self.line += 3
        return self.line

    def chance(self, share: float) -> bool:
        return self.random.random() < share


def generate(seed: int) -> Job:
    random = Random(seed)
    draw = random.random
    layout = LAYOUTS[int(draw() ** 1.2 * 5)] if draw() > 0.02 else "alone"
    world = 1 if layout == "alone" else 2 + int(draw() ** 1.7 * 7)
    if layout == "grid":
        world = (4, 4, 6, 8, 8)[int(draw() * 5)]
    backend = "nccl" if draw() < 0.5 else "gloo"
    usual = 0.02 * 500.0 ** draw()
    job = Job(seed, world, backend, layout, [], [], usual=usual)
    job.groups.append(Group(0, "default_pg", tuple(range(world)), backend))
    draft = Draft(random, job)
    draft.steps = [[] for _ in range(world)]
    draft.epochs = [[] for _ in range(world)]
    draft.extras = [[] for _ in range(world)]
    draft.starts = [[] for _ in range(world)]
    draft.warm = 2 + int(9 * draw() ** 1.3)
    _see(draft)
    STEPS[layout](draft)
    _epoch(draft)
    _threads(draft)
    plant(draft)
    return job


# --- what can be seen


def _see(draft: Draft) -> None:
    """Recorders, heartbeats, servers, clocks."""
    random, job = draft.random, draft.job
    draw = random.random
    ring = (2000, 2000, 2000, 16, 4, 2, 0)[int(draw() * 7)]
    some = ring and draw() < 0.15
    stock = draw()
    beats = draw()
    drift = 3.0 if draw() < 0.15 else 0.0
    per_host = 8 if drift == 0.0 else 2
    clocks = [0.0, *(drift * (draw() * 2 - 1) for _ in range(job.world // per_host + 1))]
    for rank in range(job.world):
        host = rank // per_host
        plan = RankPlan(rank, host=host, clock=clocks[host])
        plan.beats = beats < 0.65 or (beats < 0.7 and draw() < 0.5)
        plan.ring = 0 if some and draw() < 0.5 else ring
        plan.stock = stock < 0.15 or (stock < 0.2 and draw() < 0.5)
        slow = 1.3 if draw() < 0.05 else 1.0
        plan.jitter = tuple(slow * (0.8 + 0.4 * draw()) for _ in range(5))
        job.ranks.append(plan)
    odd = draw()
    if odd < 0.02:
        job.ranks[int(draw() * job.world)].served = False
    elif odd < 0.04:
        for plan in job.ranks:
            plan.named = False
    elif odd < 0.08:
        for plan in job.ranks:
            plan.stride = 1 + plan.rank % 3
    timing, facts = draw() < 0.3, draw() < 0.4
    for plan in job.ranks:
        plan.timing, plan.facts = timing, facts and not plan.stock
    kinds = {plan.stock for plan in job.ranks}
    rings = {plan.ring for plan in job.ranks}
    unserved = not all(plan.served for plan in job.ranks)
    told = (
        "some recorders"
        if len(rings) > 1 or (unserved and ring == 2000)
        else "short rings"
        if 0 < ring < 2000
        else "recorders"
    )
    told = told if any(rings) else "no recorder"
    beating = {plan.beats and not plan.stock and plan.served for plan in job.ranks}
    pulse = "some heartbeats" if len(beating) > 1 else "heartbeats"
    pulse = pulse if True in beating else "no heartbeat"
    served = "mixed" if len(kinds) > 1 else "stock" if True in kinds else "ours"
    if facts and served != "stock":
        served += " with facts"
    job.evidence = f"{served}, {told}, {pulse}"


# --- what a step is


def _compute(draft: Draft, share: float) -> Op:
    kind = "data" if draft.chance(0.1) else "compute"
    name = "forward" if kind == "compute" else "load"
    return Op(kind, seconds=share * draft.job.usual).at(name, draft.next_line())


def _group(draft: Draft, desc: str, ranks: tuple[int, ...], backend: str = "") -> Group:
    group = Group(len(draft.job.groups), desc, ranks, backend or draft.job.backend)
    draft.job.groups.append(group)
    return group


def _collective(draft: Draft, group: Group, name: str = "") -> Op:
    draw = draft.random.random
    name = name or COLLECTIVES[int(draw() * len(COLLECTIVES))]
    shape = () if name == "barrier" else SHAPES[int(draw() * len(SHAPES))]
    dtype = "" if name == "barrier" else "Float" if draw() < 0.8 else "BFloat16"
    op = Op("call", group.number, name, shape, dtype)
    return op.at("reduce_gradients", draft.next_line())


def _together(draft: Draft, group: Group, ops: list[Op]) -> None:
    """The same for each rank of the group."""
    for rank in group.ranks:
        draft.steps[rank] += ops


def _everybody(draft: Draft, *ops: Op) -> None:
    for step in draft.steps:
        step += ops


def _asynchronous(draft: Draft, group: Group) -> list[Op]:
    """Some collectives at once, waited for in turn."""
    ops = []
    count = 1 + int(draft.random.random() * 3)
    for number in range(count):
        op = _collective(draft, group)
        op.kind, op.key = "issue", f"w{number}"
        ops.append(op)
    kind = "poll" if draft.chance(0.15) else "wait"
    if draft.job.backend == "nccl" and kind == "wait":
        return ops + [
            Op("wait", key=op.key).at("reduce_gradients", draft.next_line()) for op in ops
        ]
    line = draft.next_line()
    return ops + [Op(kind, key=op.key).at("finish", line) for op in ops]


def _sync(draft: Draft) -> None:
    """On NCCL the host looks at the stream now and then: at the loss, at an event."""
    if draft.job.backend == "nccl":
        name = ("synchronize", "item", "item", "event")[int(draft.random.random() * 4)]
        _everybody(draft, Op("sync", name=name).at("log", draft.next_line()))


def _ddp(draft: Draft) -> None:
    group = draft.job.groups[0]
    _everybody(draft, _compute(draft, 0.6))
    for _ in range(1 + int(draft.random.random() * 3)):
        if draft.chance(0.4):
            _everybody(draft, *_asynchronous(draft, group))
        else:
            _everybody(draft, _collective(draft, group))
    _everybody(draft, _compute(draft, 0.4))
    _sync(draft)


def _grid(draft: Draft) -> None:
    """Ranks by data, tensor and, with eight, pipeline coordinates."""
    world = draft.job.world
    tensor = 2 if world != 6 or draft.chance(0.5) else 3
    tensors = [
        _group(draft, f"tensor{at}", tuple(range(at, at + tensor)))
        for at in range(0, world, tensor)
    ]
    data = [_group(draft, f"data{at}", tuple(range(at, world, tensor))) for at in range(tensor)]
    _everybody(draft, _compute(draft, 0.4))
    _alike(draft, tensors)
    if draft.chance(0.5):
        _everybody(draft, _compute(draft, 0.1))
        _alike(draft, tensors)
    _everybody(draft, _compute(draft, 0.3))
    _alike(draft, data)
    if draft.chance(0.4):
        _everybody(draft, _collective(draft, draft.job.groups[0]))
    _everybody(draft, _compute(draft, 0.2))
    _sync(draft)


def _alike(draft: Draft, groups: list[Group]) -> None:
    """The same line of code, each rank in its own group."""
    first = _collective(draft, groups[0])
    for group in groups:
        _together(draft, group, [first.changed(group=group.number)])


def _nested(draft: Draft) -> None:
    """Overlapping groups, taken by everybody in one order."""
    world, random = draft.job.world, draft.random
    groups = [draft.job.groups[0]]
    for number in range(1 + int(random.random() * 3)):
        size = min(world, 2 + int(random.random() * (world - 1)))
        ranks = tuple(sorted(random.sample(range(world), size)))
        groups.append(_group(draft, f"sub{number}", ranks))
    for group in groups:
        _everybody(draft, _compute(draft, 1.0 / len(groups)))
        if draft.chance(0.3):
            _together(draft, group, _asynchronous(draft, group))
        else:
            _together(draft, group, [_collective(draft, group)])
    _sync(draft)


def _pipeline(draft: Draft) -> None:
    """Microbatches go from rank to rank, and their gradients back."""
    world, random = draft.job.world, draft.random
    micro = 1 + int(random.random() * 3)
    backwards = draft.chance(0.5)
    lines = [draft.next_line() for _ in range(4)]
    part = draft.job.usual / (micro * (2 if backwards else 1))
    works = draft.chance(0.3)
    for rank, step in enumerate(draft.steps):
        before, after = rank - 1, rank + 1
        for down in (False, True)[: 1 + backwards]:
            source, target = (after, before) if down else (before, after)
            for _ in range(micro):
                if 0 <= source < world:
                    step += _transfer("recv", source, works, lines[0])
                step.append(Op("compute", seconds=part / world).at("stage", lines[2]))
                if 0 <= target < world:
                    step += _transfer("send", target, works, lines[1])
    if draft.chance(0.6):
        _everybody(draft, _collective(draft, draft.job.groups[0]))
    _sync(draft)


def _transfer(kind: str, peer: int, works: bool, line: int) -> list[Op]:
    if not works:
        return [Op(kind, 0, peer=peer, shape=(4,), key="p").at(kind, line)]
    op = Op("i" + kind, 0, peer=peer, shape=(4,), key="p").at(kind, line)
    return [op, Op("wait", key="p").at(kind, line + 1)]


def _ring(draft: Draft) -> None:
    """Each rank exchanges with its neighbours, in one batch."""
    world = draft.job.world
    line = draft.next_line()
    _everybody(draft, _compute(draft, 0.7))
    for rank, step in enumerate(draft.steps):
        after, before = (rank + 1) % world, (rank - 1) % world
        parts = (
            Op("isend", 0, peer=after, shape=(4,)).at("exchange", line),
            Op("irecv", 0, peer=before, shape=(4,)).at("exchange", line),
        )
        step.append(Op("batch", 0, key="b", parts=parts).at("exchange", line))
        step.append(Op("wait", key="b").at("exchange", line + 2))
    _everybody(draft, _compute(draft, 0.3))
    if draft.chance(0.6):
        _everybody(draft, _collective(draft, draft.job.groups[0]))
    _sync(draft)


def _alone(draft: Draft) -> None:
    _everybody(draft, _compute(draft, 0.6), _compute(draft, 0.4))


STEPS = {
    "ddp": _ddp,
    "grid": _grid,
    "nested": _nested,
    "pipeline": _pipeline,
    "ring": _ring,
    "alone": _alone,
}

# --- what comes now and then


def _epoch(draft: Draft) -> None:
    """Evaluation, a checkpoint, a barrier."""
    job, epochs = draft.job, draft.epochs
    group = job.groups[0]
    what = int(draft.random.random() * 7)
    line = draft.next_line()
    for rank, ops in enumerate(epochs):
        ops.append(Op("compute", seconds=job.usual).at("evaluate", line))
        if job.world == 1:
            continue
        if what == 0 and job.backend == "gloo":
            ops.append(Op("monitored", 0, "monitored_barrier").at("evaluate", line + 1))
        elif what == 1:
            if rank == 0:
                write = Op("write", seconds=job.usual, key=("io", "cpu")[draft.chance(0.3)])
                ops.append(write.at("save", line + 2))
            ops.append(Op("call", 0, "barrier", (), "").at("save", line + 4))
        elif what == 2 and job.backend == "gloo":
            ops += _objects(0, "evaluate", line + 1)
        else:
            shape = (3,) if what < 5 else (2, 2)
            ops.append(Op("call", 0, "broadcast", shape, "Long").at("evaluate", line + 1))
        if job.backend == "nccl":
            ops.append(Op("sync", name="synchronize").at("evaluate", line + 6))
    if draft.chance(0.2) and job.world > 1:
        for ops in draft.starts:
            ops.append(Op("new_group").at("setup", line + 8))
    assert group.ranks


def _objects(group: int, function: str, line: int) -> list[Op]:
    """all_gather_object: the sizes, then the pickles."""
    return [
        Op("call", group, "all_gather_object", (1,), "Long").at(function, line),
        Op("call", group, "all_gather_object data", (16,), "Byte").at(function, line),
    ]


def _threads(draft: Draft) -> None:
    """Who trains, and who is there besides."""
    draw = draft.random.random
    job = draft.job
    form = draw()
    if form < 0.12:
        draft.trainer = "trainer"
        polls = draw() < 0.5
        for strands in draft.extras:
            if polls:
                main = Strand("main", [Op("sleep", seconds=0.5).at("watch", 20)], 0, False)
            else:
                main = Strand("main", [Op("join", key="trainer").at("wait_for_trainer", 22)])
                main.acting = False
            strands.append(main)
    if draw() < 0.15:
        line = draft.next_line()
        waits = "get" if draw() < 0.5 else "condition"  # both stand within a lock that is free
        for strands in draft.extras:
            get = Op(waits, key="jobs").at("consume", line)
            strands.append(Strand("consumer", [get], 0, False, root="consume"))
    if draw() < 0.1:
        line = draft.next_line()
        for rank in range(job.world):
            lock = Op("lock", key="cache").at("refresh", line)
            work = Op("compute", seconds=job.usual / 10).at("refresh", line + 1)
            free = Op("unlock", key="cache").at("refresh", line + 2)
            rest = Op("sleep", seconds=max(job.usual * 2, 0.2)).at("refresh", line + 3)
            strand = Strand("refresher", [lock, work, free, rest], 0, False, root="refresh")
            draft.extras[rank].append(strand)
            mine = [lock.changed(place=("load", line + 5)), free.changed(place=("load", line + 6))]
            draft.steps[rank][1:1] = mine
    if draw() < 0.1 and job.world > 1:
        _saver(draft)


def _saver(draft: Draft) -> None:
    """A thread that saves checkpoints with a gloo group of its own; the trainer hands it work and,
    at the next epoch, waits for it."""
    job = draft.job
    group = _group(draft, "checkpoint", tuple(range(job.world)), "gloo")
    line = draft.next_line()
    gather = _objects(group.number, "save", line + 1)
    write = Op("write", seconds=job.usual / 2, key="io").at("write", line + 2)
    barrier = Op("call", group.number, "barrier", (), "").at("save", line + 3)
    for rank in range(job.world):
        get = Op("get", key="saves").at("save_all", line)
        done = Op("put", key="saved").at("save_all", line + 4)
        ops = [get, *gather, write, barrier, done]
        draft.extras[rank].append(Strand("saver", ops, 0, False, root="save_all"))
        epoch = draft.epochs[rank]
        epoch.insert(0, Op("get", key="saved").at("checkpoint", line + 8))
        epoch.append(Op("put", key="saves").at("checkpoint", line + 9))
        draft.starts[rank].append(Op("put", key="saved").at("setup", line + 10))
