"""Table of the forms in which a marked model may be uploaded, and what is read from each."""

from typing import Any

from table_section import Section, read


COMMAND = "python examples/benchmarks/formats.py --output runs/formats.json"
COLUMNS = "format, net, direct, range, aligned, answers, unmarked"
SAID = {"mark found": "found", "not found": "not found", "inconclusive": "named", "refused": "refused"}


def formats() -> Section:
    rows = [
        [name, net, *(cell(row[way]) for way in ("direct", "range", "aligned", "answers", "unmarked"))]
        for net, found in read("formats").items()
        for name, row in found.items()
    ]
    about = (
        "A marked model's files in the forms of other libraries. Right bits of all that say anything, where the mark is found (log2 p ≤ −128); *named*: inconclusive, with a "
        "reason that names the format or what is missing. *Direct*: the folder; *range*: the repository, read by ranges; *aligned*: the folder of the net with its channels "
        "permuted, beside the net before the mark; *answers*: the stored net is run, and asked for its other mark, of `function_coupled`, which a folder and a repository give "
        "alike. *Unmarked*: the net before its weights were marked, in the same form. `resnet` has 0.31 million parameters and learnt the digits, `vit` 0.53 million; formats that store linear "
        "layers only are tried on `vit`. GGUF and ONNX files are written by their libraries, the others by writers of our own; tests compare the reader with files of bitsandbytes, compressed-tensors, torchao and quanto, "
        "but of no library for GPTQ, AWQ and ModelOpt. An ONNX graph is read, and not run: where exporters fold constants of other layers, its answers cannot be asked."
    )
    return Section("Files of other libraries", about, COMMAND, COLUMNS.split(", "), rows)


def cell(seen: dict[str, Any]) -> str:
    word = SAID[seen["verdict"]]
    return f"{seen['right']}/{seen['bits']}" if word == "found" else word


SECTIONS = {"formats": formats}
