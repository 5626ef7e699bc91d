"""``user_features``: raw ids and columns of the request → packed user tensors, history, exclusions."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import ArtefactCorrupt
from ..features import FeatureProgram
from ..flags import every, some
from ..native.rows import take_rows
from ..ranked.order import Rows, last_real
from ..release.opened import Release
from ..settings import KNOWN, UNKNOWN, UNKNOWN_WITH_FEATURES
from ..spec import Array, Arrays, StageSpec
from ..stores.table import Users
from .column_tensors import user_rule_columns
from .ordering import check_k
from .seen_again import SeenAgain
from .sent_columns import SentColumn, check_session
from .sent_ids import SentIds
from .specs import EXCLUDED, HISTORY
from .unsent import Unsent


class UserFeatures:
    """Turn raw requests into rows and model-ready tensors.

    A batch without features in its requests gathers the users' tensors that the export computed. A batch with
    features runs the compiled feature program on all of its rows. Both give the same bits, since the program
    treats each row independently.
    """

    def __init__(self, name: str, release: Release, clock: Callable[[], float] = time) -> None:
        self.spec: StageSpec = release.stages[name]
        settings = release.settings
        self._store, self._items = release.store, release.items
        self._items.lookup  # noqa: B018 - opened now, not in the first request
        self._program = FeatureProgram.open(release.artefact("user_features", "features"))
        read = [column for column in release.manifest.request_columns if not column.of_rules]
        self._columns = tuple(SentColumn(column) for column in read)
        self._of_rules = tuple(
            (SentColumn(sent), SentColumn(told)) for sent, told in user_rule_columns(release.manifest)
        )
        self._session = tuple(column for column in self._columns if column.name in self._program.events)
        self._id_column = self._find_id_column()
        names = [tensor.name for tensor in self.spec.outputs]
        self._packed = tuple(n for n in names if n in ("user_cat", "user_num") or n.startswith("user_list_"))
        self._length = settings.history_length
        text = release.manifest.catalogue.item_id_dtype == "bytes"
        self._sent_history = SentIds(HISTORY, self._items, settings.max_excluded, text)
        self._excluded = SentIds(EXCLUDED, self._items, settings.max_excluded, text)
        carried: tuple[SentColumn | SentIds, ...] = (*self._columns, self._sent_history, self._excluded)
        self._unsent = Unsent(name for one in carried for name in one.tensor_names())
        self._k_max, self._set = settings.k_max, settings.numbers()
        self._seen_again = SeenAgain(settings, clock)
        self._pad = self._items.size
        # Batch size → an array without items; there are few batch sizes.
        self._blank: dict[int, Rows] = {}
        self._release, self._shows_history = release, "history_cat" in names
        self.renew()

    def renew(self) -> None:
        """Open the current categories of items."""
        self._history_cat = self._history_table(self._release) if self._shows_history else None

    def _find_id_column(self) -> str | None:
        """Return the name under which the program reads the user id, if the id is a feature."""
        columns = {column.name for column in self._columns}
        others = [column.name for column in self._program.inputs if column.name not in columns]
        if len(others) > 1:
            raise ArtefactCorrupt(
                f"stage user_features: the feature program reads {others}, but besides the request's columns "
                f"{sorted(columns)} only the user id can be a feature; export again"
            )
        return others[0] if others else None

    def _history_table(self, release: Release) -> Array:
        """Return the items' category ids that a history shows, a C-contiguous ``[I + 1, H]``."""
        wanted, packed = release.settings.history_columns, release.manifest.packed.item_cat
        missing = [name for name in wanted if name not in packed]
        if missing:
            raise ArtefactCorrupt(
                f"stage user_features: history columns {missing} are not among the items' categorical "
                f"columns {list(packed)}; export again"
            )
        table = self._items.packed("item_cat")
        if wanted == packed:
            return table
        # If rows were not contiguous, each gather would copy the whole table.
        return np.ascontiguousarray(table[:, [packed.index(name) for name in wanted]])

    def check(self, arrays: Arrays) -> None:
        """Reject a wrong ``k`` or step number, infinities, lengths that do not fit, and too long lists."""
        check_k(arrays, self._k_max)
        for one in self._set:
            one.check(arrays)
        for ids in (self._excluded, self._sent_history):
            ids.check(arrays)
        for column in (*self._columns, *(column for column, _ in self._of_rules)):
            column.check(arrays)
        check_session(arrays, self._session)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Look up users and items, and take features from the request or the store.

        Returns
        -------
        ``status [B, 1]``, the packed user tensors, ``history_row [B, L]``, ``history_length [B, 1]``,
        ``history_cat [B, L, H]``, ``excluded_row [B, E]`` with E ≥ 1, and the user columns that rules read.
        """
        users = self._store.read(arrays["user_id"])
        outputs = self._stored(users) if self._asks_nothing(arrays, users) else self._merged(arrays, users)
        for column, told in self._of_rules:
            outputs.update(told.tensors(column.column(arrays, users, column.sent(arrays))))
        return outputs

    def _asks_nothing(self, arrays: Arrays, users: Users) -> bool:
        """Return whether stored tensors are the outputs: requests send ids alone, and no value is live."""
        live = users.stale is not None or users.appended is not None or users.filtered is not None
        # The dummy row was computed without an id; for an unknown id the program may give other features.
        fixed = not live and (self._id_column is None or every(users.known))
        return fixed and self._unsent.holds(arrays, len(users.known))

    def _stored(self, users: Users) -> dict[str, Array]:
        """Return the outputs of :meth:`_merged` for requests that send ids alone."""
        known, outputs = users.known, dict[str, Array]()
        if every(known):
            # KNOWN is 0, and zeros are faster to make.
            outputs["status"] = np.zeros((len(known), 1), np.int32)
        else:
            outputs["status"] = np.where(known, np.int32(KNOWN), np.int32(UNKNOWN))[:, None]
        outputs.update(users.packed(self._packed))
        if self._length:
            self._add_history(outputs, *users.history(self._length, self._pad))
        outputs["excluded_row"] = self._nobody(len(known))
        return outputs

    def _merged(self, arrays: Arrays, users: Users) -> dict[str, Array]:
        """Return the outputs from what the requests send and what is stored, without the columns of rules."""
        sent = [column.sent(arrays) for column in self._columns]
        overridden = self._sent_history.given(arrays)
        outputs: dict[str, Array] = {"status": self._status(users, sent, overridden)[:, None]}
        # The dummy row was computed without an id; for an unknown id the program may give other features.
        new_ids = self._id_column is not None and not every(users.known)
        stale = users.stale is not None and some(users.stale)
        any_sent = any(map(some, sent))
        if new_ids or stale or any_sent:
            outputs.update(self._computed(arrays, users, sent))
        else:
            outputs.update(users.packed(self._packed))
        sent_rows, asked_out = self._sent_history.rows(arrays), self._excluded.rows(arrays)
        if self._length:
            outputs.update(self._history(users, sent_rows, overridden))
        if not (any_sent or some(overridden) or sent_rows.shape[1] or asked_out.shape[1]):
            self._unsent.learn(arrays, len(users.known))
        may_come = self._seen_again.may_come(arrays)
        allowed = may_come.everything[:, None]
        ruled_out = [asked_out]
        if sent_rows.shape[1]:
            ruled_out.insert(0, np.where(allowed, self._pad, sent_rows))
        if users.appended is not None:
            if may_come.until_s is not None:
                allowed = allowed | (users.appended_ms <= may_come.until_s[:, None] * 1000)
            ruled_out.append(np.where(allowed, self._pad, users.appended))
        if users.filtered is not None:
            ruled_out.append(np.where(may_come.everything[:, None], self._pad, users.filtered))
        excluded = [rows for rows in ruled_out if rows.shape[1]]
        if not excluded:
            # Triton can't pass on a tensor without elements.
            excluded = [self._nobody(len(sent_rows))]
        outputs["excluded_row"] = excluded[0] if len(excluded) == 1 else np.concatenate(excluded, axis=1)
        return outputs

    def _nobody(self, users: int) -> Rows:
        """Return ``[B, 1]`` of the pad row."""
        if users not in self._blank:
            self._blank[users] = np.full((users, 1), self._pad)
        return self._blank[users]

    def _status(
        self, users: Users, sent: list[npt.NDArray[np.bool_]], overridden: npt.NDArray[np.bool_]
    ) -> Array:
        known, features = users.known, overridden.copy()
        for column, flags in zip(self._columns, sent, strict=True):
            if column.of_user:
                features |= flags
        status = np.where(features, np.int32(UNKNOWN_WITH_FEATURES), np.int32(UNKNOWN))
        status[known] = KNOWN
        return status

    def _computed(self, arrays: Arrays, users: Users, sent: list[npt.NDArray[np.bool_]]) -> dict[str, Array]:
        given = zip(self._columns, sent, strict=True)
        columns = {column.name: column.column(arrays, users, flags) for column, flags in given}
        if self._session:
            # A request that sends one column of a session replaces the whole session of the store.
            flags_of = dict(zip(self._columns, sent, strict=True))
            whole = np.logical_or.reduce([flags_of[column] for column in self._session])
            for column in self._session:
                columns[column.name] = column.column(arrays, users, flags_of[column], whole)
        if self._id_column is not None:
            columns[self._id_column] = Column(arrays["user_id"][:, 0])
        packed = self._program.packed(columns, len(users.known))
        return {name: packed[name] for name in self._packed}

    def _history(self, users: Users, sent_rows: Rows, overridden: npt.NDArray[np.bool_]) -> dict[str, Array]:
        history, count = users.history(self._length, self._pad)
        if some(overridden):
            real = sent_rows != self._pad
            sent_count = np.count_nonzero(real, axis=1)
            sent_history = last_real(sent_rows, real, self._length, self._pad)
            history = np.where(overridden[:, None], sent_history, history)
            count = np.where(overridden, np.minimum(sent_count, self._length).astype(np.int32), count)
        outputs: dict[str, Array] = {}
        self._add_history(outputs, history, count)
        return outputs

    def _add_history(self, outputs: dict[str, Array], history: Rows, count: npt.NDArray[np.int32]) -> None:
        outputs["history_row"], outputs["history_length"] = history, count[:, None]
        if self._history_cat is not None:
            outputs["history_cat"] = take_rows(self._history_cat, history)
