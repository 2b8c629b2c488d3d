"""The classes that adapters add to a pipeline, with their rows in the network's table of classes."""

from collections.abc import Sequence

from torch import Tensor, nn

from hfgen.models.class_rows import ClassRows, class_table

from .classes import names_of_classes


class AdapterClassesMixin:
    """Classes of adapters, by the numbers after the pipeline's own. A subclass says which network has the adapters:
    `_lora_loadable_modules`, as diffusers calls it."""

    _lora_loadable_modules: tuple[str, ...]
    _numbered = False
    """Whether the pipeline's own classes have no names but numbers."""

    @property
    def _adapted(self) -> nn.Module:
        return getattr(self, self._lora_loadable_modules[0])

    def _names(self) -> list[str]:
        """Return the names of the pipeline's classes, their numbers if they have none."""
        return names_of_classes(self.config.get("num_classes"), self.config.get("label_names"))

    def _add_classes(self, name: str, rows: Tensor, names: list[str]) -> None:
        """Add the classes of an adapter after all that there are."""
        before = self._names()
        place, table = class_table(self._adapted)
        if not isinstance(table, ClassRows):
            self._numbered = self.config.label_names is None
            table = ClassRows(table, self.config.num_classes)
            self._adapted.set_submodule(place, table)
        table.rows[name] = nn.Parameter(rows.detach().to(table.table.weight), requires_grad=False)
        self._say_classes([*before, *names])

    def _say_classes(self, names: list[str], numbered: bool = False) -> None:
        """Write the number and the names of the classes into the configurations."""
        more = len(names) - self.config.num_classes
        network = self._adapted
        network.register_to_config(num_class_embeds=network.config.num_class_embeds + more)
        self.register_to_config(num_classes=len(names), label_names=None if numbered else list(names))

    def _classes_of(self, name: str) -> tuple[Tensor | None, list[str]]:
        """Return the rows (K, D) and the names of an adapter's classes; None and [] if it has none."""
        found = class_table(self._adapted)
        if found is None or not isinstance(found[1], ClassRows):
            return None, []
        names, start = self._names(), found[1].classes
        for key, rows in found[1].rows.items():
            if key == name:
                return rows, names[start : start + len(rows)]
            start += len(rows)
        return None, []

    def _keep_classes(self, kept: Sequence[str]) -> None:
        """Remove the classes of all adapters but these."""
        found, names = class_table(self._adapted), self._names()
        if found is None or not isinstance(found[1], ClassRows):
            return
        table, left, start = found[1], names[: found[1].classes], found[1].classes
        for name, rows in list(table.rows.items()):
            own, start = names[start : start + len(rows)], start + len(rows)
            if name in kept:
                left += own
            else:
                del table.rows[name]
        self._say_classes(left, numbered=self._numbered and not table.rows)

    def _put_back_table(self) -> None:
        """Put a plain table in place of one with rows of adapters: the base's own, if no rows are left."""
        found = class_table(self._adapted)
        if found is not None and isinstance(found[1], ClassRows):
            place, table = found
            self._adapted.set_submodule(place, table.plain() if table.rows else table.table)
