"""Where the workers are: the options of all commands that ask workers."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from workerserver.cli.errors import CommandError, NoJobError, UsageError
from workerserver.cli.text import count, positive_seconds
from workerserver.cli.token import shown_token
from workerserver.cluster.ask.client import tls_context
from workerserver.cluster.errors import ClusterError, NoJob, Unanswered
from workerserver.cluster.find.discovery import Found, Options, discover, look_around
from workerserver.cluster.model import Worker

__all__ = [
    "SEND_TOKEN_HELP",
    "TARGET_HELP",
    "TOKEN_HELP",
    "add_asking",
    "add_places",
    "boxes_near",
    "client_options",
    "failed",
    "find",
    "find_all",
    "is_place_named",
    "shown_address",
    "shown_host",
    "target_name",
]

TARGET_HELP = (
    "a Unix socket, a folder, pattern or template ({rank}) of them, host:port, a URL, or the pid "
    "of a worker or of its launcher"
)
TOKEN_HELP = (
    "The token comes from WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE. The token is not sent: "
    "the workers and this command prove to each other that they know the token."
)
SEND_TOKEN_HELP = (
    "send the token itself (readable on the network without https), and believe workers that prove "
    "nothing: for workers that are older than this command, and for stock torch workers"
)


def add_places(parser: argparse.ArgumentParser, *, targets: bool) -> None:
    """The options that find() reads. *targets*: with the argument TARGET, any number of times."""
    where = parser.add_argument_group("where the workers are (several of these may be given)")
    if targets:
        where.add_argument("targets", nargs="*", metavar="TARGET", help=TARGET_HELP)
    where.add_argument(
        "--job", metavar="NAME", help="the job of this name, of this user on this machine"
    )
    where.add_argument("--store", metavar="HOST:PORT", help="the job's TCPStore (rendezvous)")
    where.add_argument(
        "--hosts", metavar="FILE", help="lines such as node[001-128]:25[000-007]; # is a comment"
    )
    where.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="NAME:PORT[-PORT]",
        help="every address of NAME: a headless Kubernetes service",
    )
    where.add_argument(
        "--collectors",
        action="append",
        default=[],
        metavar="HOST:PORT,...",
        help="collectors, one for each host: node[001-128]:25998",
    )
    where.add_argument("--slurm", action="store_true", help="the nodes of this Slurm job")
    where.add_argument(
        "--port",
        metavar="PORT",
        help="for --slurm, and for hosts of --hosts and --collectors without a port",
    )
    where.add_argument(
        "--world-size", type=count, metavar="N", help="how many ranks the job must have"
    )


def add_asking(parser: argparse.ArgumentParser, deadline: float) -> argparse._ArgumentGroup:
    """The options that client_options() reads; *deadline* in seconds if none is given."""
    how = parser.add_argument_group("how to ask")
    how.add_argument(
        "--deadline",
        "--timeout",
        type=positive_seconds,
        default=deadline,
        metavar="S",
        help=f"seconds for each worker (default {deadline:g})",
    )
    how.add_argument(
        "--token-file",
        metavar="FILE",
        help="take the token from the first line of FILE, not from the environment",
    )
    how.add_argument(
        "--cacert", metavar="FILE", help="the certificate authorities for https addresses"
    )
    how.add_argument(
        "--cert", metavar="FILE", help="the certificate to show to https workers, with its key"
    )
    how.add_argument(
        "--key", metavar="FILE", help="the certificate's key, if the file of --cert has none"
    )
    how.add_argument("--send-token", action="store_true", help=SEND_TOKEN_HELP)
    return how


def is_place_named(options: argparse.Namespace) -> bool:
    """Whether an option other than TARGET says where workers are."""
    places = (options.store, options.hosts, options.dns, options.collectors, options.slurm)
    return any(places) or options.job is not None


def find(options: argparse.Namespace) -> list[Worker]:
    """The workers that the options name. NoJobError if nobody is there, UsageError for a place that
    can't be one."""
    try:
        return discover(_places(options, whole=False))
    except ClusterError as error:
        raise failed(error) from None


def find_all(options: argparse.Namespace) -> Found:
    """As :func:`find`, with what ended workers have left. A pid stands for its whole job."""
    try:
        return look_around(_places(options, whole=True))
    except ClusterError as error:
        raise failed(error) from None


def _places(options: argparse.Namespace, *, whole: bool) -> Options:
    return Options(
        targets=options.targets,
        hosts_file=options.hosts,
        store=options.store,
        dns=options.dns,
        collectors=options.collectors,
        slurm=options.slurm,
        port=options.port,
        world_size=options.world_size,
        deadline=options.deadline,
        job=options.job,
        whole=whole,
    )


def boxes_near() -> str:
    """Where the environment, or the folder of whoever asks, has black boxes; "" if nowhere. For
    whoever finds nobody alive."""
    from workerserver.blackbox.runs import holds_boxes

    for folder in (os.environ.get("WORKERSERVER_BLACKBOX", ""), "."):
        if folder and holds_boxes(folder):
            return f"black boxes lie in {folder}: workerserver diagnose {shlex.quote(folder)}"
    return ""


def failed(error: ClusterError) -> CommandError:
    """How a command ends for which *error* leaves nobody to ask."""
    if isinstance(error, NoJob):
        nobody = NoJobError(str(error))
        near = boxes_near()
        nobody.advice = (*error.advice, *([f"{near[0].upper()}{near[1:]}"] if near else []))
        return nobody
    return CommandError(str(error)) if isinstance(error, Unanswered) else UsageError(str(error))


def client_options(options: argparse.Namespace) -> dict[str, Any]:
    """How the cluster's Client is to ask: deadline, token and certificates. UsageError."""
    try:
        tls = None
        if options.key is not None and options.cert is None:
            raise UsageError("--key is of use with --cert only")
        if options.cacert is not None or options.cert is not None:
            tls = tls_context(options.cacert, options.cert, options.key)
    except ClusterError as error:
        raise UsageError(str(error)) from None
    token = shown_token(options.token_file)
    return {
        "deadline": options.deadline,
        "token": token.secret,
        "token_name": token.name,
        "send_token": options.send_token,
        "which": token.which,
        "tls": tls,
        "authority": options.cacert is not None,
    }


def target_name(worker: Worker) -> str:
    """How a worker is shown. Behind collectors, hosts can have sockets of the same name."""
    if not worker.address:
        return worker.name
    if worker.via is not None:
        return f"{worker.via.host}:{worker.address}"
    return shown_address(worker)


def shown_address(worker: Worker) -> str:
    """The address of a worker in JSON, as a TARGET is written."""
    return f"https://{worker.address}" if worker.tls and worker.via is None else worker.address


def shown_host(worker: Worker) -> str | None:
    """The host of a worker in JSON; None if nobody has told it."""
    return worker.via.host if worker.via is not None else worker.host
