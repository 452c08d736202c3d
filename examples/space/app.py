"""A Hugging Face Space of a MUNIT or UNIT model: what `munit-fast app` serves, on the port that Spaces expect."""

import os

from munit_fast.app import launch
from munit_fast.models import from_pretrained

MODEL = "openmoji-lines2color"  # or the .safetensors file of your own model, beside this file


def main() -> None:
    host = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    launch(from_pretrained(MODEL), host=host, port=7860)


if __name__ == "__main__":
    main()
