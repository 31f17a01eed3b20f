"""A stream without the ids that occur once in its training split."""

import numpy as np


class WithoutOneHitIds:
    """What an ideal admission filter would leave of a click stream.

    Ids that occur once in the training split become padding there.
    """

    def __init__(self, stream):
        self._stream = stream
        pairs, counts = [], []
        for table in range(stream.num_tables):
            ids = np.concatenate(
                [batch.ids[:, table] for batch in stream.batches("train", 1 << 14)]
            )
            known, occurrences = np.unique(ids[ids != -1], return_counts=True)
            pairs.append(known[occurrences == 1])
            counts.append(occurrences)
        self._one_hit = pairs
        self.one_hit_share = np.mean(np.concatenate(counts) == 1)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def batches(self, split, batch_size):
        for batch in self._stream.batches(split, batch_size):
            if split == "train":
                ids = batch.ids.copy()
                for table, gone in enumerate(self._one_hit):
                    ids[np.isin(ids[:, table], gone), table] = -1
                batch = batch._replace(ids=ids)
            yield batch
