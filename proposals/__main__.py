"""``python -m proposals VERB ...`` is the `aligndet` command, for launchers that start a module (torchrun -m)."""

from proposals.cli import main

if __name__ == "__main__":
    main()
