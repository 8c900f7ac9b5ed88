"""`python -m stackloom` is the `stackloom` command."""

from stackloom.cli import main

if __name__ == "__main__":
    main()
