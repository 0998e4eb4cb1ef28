"""`python -m verl_ee.cli`, for a Python without the command `verl-ee` in its path."""

from verl_ee.cli.main import main

raise SystemExit(main())
