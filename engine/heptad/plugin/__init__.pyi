from heptad.checkpoints.store import Store as Store
from heptad.errors import Unfinished as Unfinished
from heptad.history.journal.file import JournalFile as JournalFile
from heptad.history.journal.recorder import JournalRecorder as JournalRecorder
from heptad.plugin.contract import Plugin as Plugin
from heptad.plugin.contract import on_enter as on_enter
from heptad.plugin.contract import on_exit as on_exit
from heptad.plugin.detour import Detour as Detour
from heptad.plugin.filter import Filter as Filter
from heptad.plugin.lookup import monitored as monitored
from heptad.record.buffer import Follower as Follower
from heptad.record.events import Note as Note
from heptad.record.values import Recorded as Recorded
from heptad.run.snapshot import Snapshot as Snapshot
from heptad.step.metrics import Metric as Metric
from heptad.step.metrics import metrics_mistake as metrics_mistake

__all__: list[str]
