from heptad.checkpoints.entry import Entry as Entry
from heptad.checkpoints.files import Files as Files
from heptad.checkpoints.layout import is_checkpoint as is_checkpoint
from heptad.checkpoints.store import Store as Store
from heptad.checkpoints.weights import load_weights as load_weights
from heptad.run.snapshot import Snapshot as Snapshot

__all__: list[str]
