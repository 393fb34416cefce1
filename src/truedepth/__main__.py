"""`python -m truedepth`: the same as the command `truedepth`."""

from truedepth.cli import main

if __name__ == "__main__":
    main()
