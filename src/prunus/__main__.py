"""``python -m prunus`` is the command."""

from prunus.cli.app import main

if __name__ == "__main__":
    main()
