import sys

from client._cli import main

if __name__ == "__main__":
    sys.exit(main())
