"""The episodes of a GRPO step in verl's batch: what their agent loop said of them, and which of them are learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import transfer_queue as tq

from verl_ee.experience.progress import plugin_logger

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta

logger = plugin_logger(__name__)
EpisodeInfos = Mapping[str, Mapping[str, object]]
"""The `reward_extra_info` of each episode of a batch, by `<group>_<number in the group>`."""


def episode_infos(batch: KVBatchMeta) -> EpisodeInfos:
    """Return what each episode of a batch says; verl gives it to every turn."""
    turns = {_episode(key): key for key in batch.keys}
    fields = tq.kv_batch_get(keys=list(turns.values()), partition_id=batch.partition_id, select_fields=["extra_fields"])
    infos = [extra.get("reward_extra_info", {}) for extra in fields.pop("extra_fields").tolist()]
    return dict(zip(turns, infos, strict=True))


def without_failed(batch: KVBatchMeta, infos: EpisodeInfos) -> KVBatchMeta:
    """Leave out the episodes whose environment failed, which verl would compare the others of their group with.

    verl knows groups that lack episodes, and fills the batch with rows from which nothing is learned. An episode that
    is left alone in its group is left out as well: it has nothing to be compared with, and verl would take its score
    for its advantage. Only if no other episode remained, it stays.

    Args:
        batch: batch of a step, without padding; what is left out of it is cleared from the queue.
        infos: what its episodes say; at least one has not failed.
    """
    failed = {episode for episode, info in infos.items() if info.get("env_failed")}
    if not failed:
        return batch
    alone = _left_alone(infos, failed)
    if len(failed) + len(alone) < len(infos):
        if alone:
            logger.warning(f"{len(alone)} episodes are left out too, because all others of their groups have failed.")
        failed |= alone
    tq.kv_clear(keys=[key for key in batch.keys if _episode(key) in failed], partition_id=batch.partition_id)
    return batch.select_keys([key for key in batch.keys if _episode(key) not in failed])


def _episode(key: str) -> str:
    """Return the episode of a key, which ends with the number of the turn."""
    return key.rpartition("_")[0]


def _left_alone(infos: EpisodeInfos, failed: set[str]) -> set[str]:
    """Return the episodes that are the only one of their group, because the others have failed."""
    reduced = {_group(episode) for episode in failed}
    others = [episode for episode in infos if episode not in failed]
    sizes = Counter(map(_group, others))
    return {episode for episode in others if _group(episode) in reduced and sizes[_group(episode)] == 1}


def _group(episode: str) -> str:
    return episode.rpartition("_")[0]
