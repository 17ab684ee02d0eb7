"""Commands as somebody types them, in this process."""

from typer.testing import CliRunner

from hf_watermark.cli.main import app


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert status is None or result.exit_code == status, result.output
    return result


def refused(*arguments) -> str:
    result = run(*arguments, status=2)
    assert result.stderr.startswith("Error: ") and result.stdout == ""
    return result.stderr
