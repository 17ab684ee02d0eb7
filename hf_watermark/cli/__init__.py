"""The command line `hf-watermark`: one file per command. Heavy imports stay inside the commands, so that `--help` is quick."""
