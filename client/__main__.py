import sys

from client.commands import main

if __name__ == "__main__":
    sys.exit(main())
