"""The command group `hf-watermark` and its entry point."""

import atexit
import os
import sys
import threading
import traceback
from typing import Annotated, Any

import typer

from .. import __version__
from . import (
    attack,
    benchmark,
    calibrate,
    certify,
    demo,
    disclose,
    dispute,
    inspect,
    judge,
    keys,
    mark,
    methods,
    owner,
    plan,
    precommit,
    publish,
    quickstart,
    revoke,
    statement,
    survival,
    verify,
    watch,
)
from .errors import BUG, OneLineErrors


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Put an ownership mark into a vision model while fine-tuning it, and prove it later."""


# Pretty tracebacks would print local variables, and those may hold secrets.
app = typer.Typer(
    cls=OneLineErrors,
    callback=root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example:\n\nhf-watermark verify suspect-folder --key keys/my-model",
)
owner_app = typer.Typer(
    help="Create, show or back up the identity that signs your keys.",
    no_args_is_help=True,
    epilog=owner.CREATE_EXAMPLE,
)
owner_app.command(epilog=owner.CREATE_EXAMPLE)(owner.create)
owner_app.command(epilog=owner.SHOW_EXAMPLE)(owner.show)
owner_app.command(epilog=owner.BACKUP_EXAMPLE)(owner.backup)
owner_app.command(epilog=owner.RESTORE_EXAMPLE)(owner.restore)
app.add_typer(owner_app, name="owner")
key_app = typer.Typer(help="Back up a key folder, or restore it.", no_args_is_help=True, epilog=keys.EXPORT_EXAMPLE)
key_app.command("export", epilog=keys.EXPORT_EXAMPLE)(keys.export)
key_app.command("import", epilog=keys.RESTORE_EXAMPLE)(keys.restore)
app.add_typer(key_app, name="key")
app.command(epilog=verify.EXAMPLE)(verify.verify)
app.command(epilog=mark.EXAMPLE)(mark.mark)
app.command(epilog=watch.EXAMPLE)(watch.watch)
app.command(epilog=inspect.EXAMPLE)(inspect.inspect)
app.command(epilog=certify.EXAMPLE)(certify.certify)
app.command(epilog=attack.EXAMPLE, cls=attack.AttackCommand)(attack.attack)
app.command(epilog=benchmark.EXAMPLE)(benchmark.benchmark)
app.command(epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.command(epilog=plan.EXAMPLE)(plan.plan)
app.command(epilog=precommit.EXAMPLE)(precommit.precommit)
app.command(epilog=publish.EXAMPLE)(publish.publish)
app.command(epilog=revoke.EXAMPLE)(revoke.revoke)
statement_app = typer.Typer(
    help="Show or check the signed statement of any model.", no_args_is_help=True, epilog=statement.CHECK_EXAMPLE
)
statement_app.command(epilog=statement.SHOW_EXAMPLE)(statement.show)
statement_app.command(epilog=statement.CHECK_EXAMPLE)(statement.check)
statement_app.command(epilog=statement.COMPARE_EXAMPLE)(statement.compare)
app.add_typer(statement_app, name="statement")
app.command(epilog=survival.EXAMPLE)(survival.survival)
app.command("open", epilog=disclose.EXAMPLE)(disclose.disclose)
app.command(epilog=judge.EXAMPLE)(judge.judge)
app.command(epilog=dispute.EXAMPLE)(dispute.dispute)
app.command(epilog=demo.EXAMPLE)(demo.demo)
app.command(epilog=methods.EXAMPLE)(methods.methods)
app.command(epilog=quickstart.EXAMPLE)(quickstart.quickstart)


def main() -> None:
    """Console script. Exit statuses: those of the command, 70 for a bug, 130 when interrupted."""
    status: Any = 0
    try:
        app(prog_name="hf-watermark")
    except SystemExit as end:
        status = end.code
    except Exception:
        traceback.print_exc()
        status = BUG
    leave(status)


def leave(status: Any) -> None:
    """
    Ends the process after everything that Python has to put away, as `multiprocessing` ends its own. The libraries of torch would then take half
    a second, and 100 MB that were never in memory before, to free what the system frees anyway: they are not waited for.
    """
    if "torch" not in sys.modules or not isinstance(status, int | None):
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        sys.exit(status)
    os._exit(status or 0)


if __name__ == "__main__":
    main()
