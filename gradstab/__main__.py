"""Lets `python -m gradstab` do what the command `gradstab` does."""

import sys

from gradstab.cli.main import main

sys.exit(main())
