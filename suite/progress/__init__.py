"""What a run says while it works, and times as people read and write them.

Imports the leaves alone. Every room above the tables may import it.
"""

from suite.progress.lines import Lines as Lines
from suite.progress.lines import Pace as Pace
from suite.progress.lines import Silent as Silent
from suite.progress.lines import Steps as Steps
from suite.progress.lines import Work as Work
from suite.progress.lines import display as display
