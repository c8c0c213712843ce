"""`python -m lpsel` is the console command."""

from lpsel.cli import console

if __name__ == "__main__":
    console()
