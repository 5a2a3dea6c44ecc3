import sys

from support.chaos.run import main

sys.exit(main())
