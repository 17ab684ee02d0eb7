"""
Check whether a model carries the mark of a key.

    python examples/verify.py path/to/suspect runs/my-model-key

Exit status 0: mark found; 1: anything else. `hf-watermark verify` does the same with more options.
"""

import argparse
import getpass
import sys

from hf_watermark import WatermarkKey, verify
from hf_watermark.keys import WrongPassphrase


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suspect", help="folder or file of safetensors")
    parser.add_argument("key", help="folder that `key.save` wrote")
    arguments = parser.parse_args()
    try:
        key = WatermarkKey.load(arguments.key)
    except WrongPassphrase:
        key = WatermarkKey.load(arguments.key, getpass.getpass("passphrase of the key: "))
    evidence = verify(arguments.suspect, key)
    print(evidence.to_json())
    print(evidence, evidence.reason, *evidence.warnings, sep="\n", file=sys.stderr)
    return 0 if evidence.found else 1


if __name__ == "__main__":
    sys.exit(main())
