"""Commands as somebody types them, in this process."""

from typer.testing import CliRunner

from hf_watermark.cli.main import app


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert status is None or result.exit_code == status, result.output
    return result


def refused(*arguments) -> str:
    result = run(*arguments, status=2)
    assert result.stdout == ""
    return error_line(result.stderr)


def error_line(stderr: str) -> str:
    """The one line that says what is wrong, behind the one in which a slow command says what it began."""
    *begun, error = stderr.splitlines()
    assert error.startswith("Error: ") and (not begun or begun[0].endswith(" ...") and len(begun) == 1), stderr
    return error + "\n"
