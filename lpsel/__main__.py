"""Run the console command as `python -m lpsel`."""

from lpsel.cli import console

if __name__ == "__main__":
    console()
