"""python -m broker."""

from broker.cli.main import run

if __name__ == "__main__":
    run()
