"""The pair store: the format of pairs, their storage, and the order in which training reads them.

`import shards` does not import torch. Batches for training are in `shards.streaming.stream`.
"""

from shards.core.errors import Failed, Refused
from shards.dataset.manifest import Manifest, View, create_dataset
from shards.dataset.manifest_row import ManifestRow, shard_name
from shards.dataset.reader import read_shard
from shards.dataset.verify import Finding, verify
from shards.dataset.writer import commit_shard, shard_bytes
from shards.format.noise import gaussian_noise
from shards.format.pairs import Pairs, label
from shards.format.spec import SCHEMA_VERSION, PairSpec
from shards.streaming.order import Order

__all__ = [
    "SCHEMA_VERSION",
    "Failed",
    "Finding",
    "Manifest",
    "ManifestRow",
    "Order",
    "PairSpec",
    "Pairs",
    "Refused",
    "View",
    "commit_shard",
    "create_dataset",
    "gaussian_noise",
    "label",
    "read_shard",
    "shard_bytes",
    "shard_name",
    "verify",
]
