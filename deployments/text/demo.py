"""From questions of bank customers to a planned cascade of text classifiers and the report that is expected of it.

    python -m deployments.text.demo

Needs the folder `text_banking77` in COE_DATA. All files land in `.coe/text`. Exits 77 where the data are not there, and
non-zero, with the message of the step that failed, if a step fails.
"""

from __future__ import annotations

import sys

from deployments import trained

DATA = "text_banking77"


def main() -> int:
    """Run the example; its exit code."""
    return trained.main(trained.Example("text", DATA, "questions"), __doc__)


if __name__ == "__main__":
    sys.exit(main())
