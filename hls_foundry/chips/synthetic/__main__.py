"""One worker process of `generate`: `python -m hls_foundry.chips.synthetic SHARE`, where SHARE is JSON that `generate` made."""

import sys

from hls_foundry.chips.synthetic.writer import work_share

if __name__ == "__main__":
    sys.exit(work_share(sys.argv[1]))
