"""From CIFAR-10 pictures to a planned cascade of convolutional nets and the report that is expected of it.

    python -m deployments.images.demo

Needs the folder `images_cifar10` in COE_DATA. All files land in `.coe/images`. Exits 77 where the data are not there, and
non-zero, with the message of the step that failed, if a step fails.
"""

from __future__ import annotations

import sys

from deployments import trained

DATA = "images_cifar10"


def main() -> int:
    """Run the example; its exit code."""
    return trained.main(trained.Example("images", DATA, "pictures"), __doc__)


if __name__ == "__main__":
    sys.exit(main())
