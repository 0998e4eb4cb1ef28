"""`python -m verl_ee.cli`, for a Python without the command `verl-ee` in its path."""

from verl_ee.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
