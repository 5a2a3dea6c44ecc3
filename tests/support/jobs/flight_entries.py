"""Flight-recorder entries in NCCL's documented format."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def entry(record: int, seq: int, op: str = "all_reduce", **changes: Any) -> dict[str, Any]:
    """One entry as torch 2.13 writes it for NCCL, completed."""
    return {
        "collective_seq_id": seq,
        "input_dtypes": ["Float"],
        "input_sizes": [[4]],
        "is_p2p": False,
        "op_id": record + 1,
        "output_dtypes": ["Float"],
        "output_sizes": [[4]],
        "p2p_seq_id": 0,
        "pg_id": 0,
        "process_group": ["0", "default_pg"],
        "profiling_name": f"nccl:{op}",
        "record_id": record,
        "retired": True,
        "state": "completed",
        "thread_id": "1",
        "thread_name": "python",
        "time_created_ns": 1_000_000_000 + record,
        "time_discovered_completed_ns": 0,
        "time_discovered_started_ns": 0,
        "timeout_ms": 600000,
        **changes,
    }


def pending(record: int, seq: int, op: str = "all_reduce", **changes: Any) -> dict[str, Any]:
    return entry(record, seq, op, **{"state": "started", "retired": False, **changes})


def peer(record: int, number: int, op: str, **changes: Any) -> dict[str, Any]:
    """A pending send or recv."""
    changes = {"is_p2p": True, "p2p_seq_id": number, "state": "scheduled", **changes}
    return pending(record, 0, op, **changes)


def trace(*entries: dict[str, Any], ranks: str = "[0, 1, 2]", **more: Any) -> dict[str, Any]:
    """A dump with the default group's configuration, as NCCL's recorder has it."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}}
    return {"version": "2.10", "pg_config": config, "entries": list(entries), **more}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["0", "default_pg", "nccl:send 0->1", "gloo:all_reduce", "completed", "[0]"]),
    lambda each: (
        st.lists(each, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *entry(0, 0),
                    "entries",
                    "pg_config",
                    "pg_status",
                    "groups",
                    "ranks",
                    "name",
                    "desc",
                    "last_issued",
                    "last_enqueued_collective",
                    "seq",
                    "op",
                ]
            ),
            each,
            max_size=6,
        )
    ),
    max_leaves=25,
)
