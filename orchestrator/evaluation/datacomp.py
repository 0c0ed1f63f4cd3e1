"""DataComp's 38 tasks as data: where each lies, its main figure, how large it is, and what is averaged.

From DataComp's task list (Gadre et al. 2023, arXiv 2304.14108, table of evaluation sets). FairFace and UTKFace, which
have no main figure and enter no average, are left out. No torch: recipes are checked with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One evaluation set.

    Attributes:
        key: DataComp's name of it.
        name: for people.
        size: test samples (images; items of WinoGAViL), None for a set that the table does not know.
        classes: classes of a classification.
        metric: the figure that stands for it (benchmark_figures.py: FIGURES).
        chance: that figure of random answers, or of the largest class, where DataComp states it.
        group: the aggregate beside the average of all that it belongs to.
        folder: its folder without what tools put around the name (`wds_<folder>_test`). Left out: after the key.
    """

    key: str
    name: str
    size: int | None = None
    classes: int | None = None
    metric: str = ""
    chance: float | None = None
    group: str = ""
    folder: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """Names its folder may have, the first one found counts: DataComp's, CLIP_benchmark's, its own."""
        folder = self.folder or self.key.removeprefix("fairness/").replace("/", "-")
        return f"wds_{folder}_test", f"wds_{folder}", folder


TASKS = (
    Task("vtab/caltech101", "Caltech-101", 6_085, 102, "mean_per_class_recall", 0.009804, "vtab"),
    Task("cifar10", "CIFAR-10", 10_000, 10, "acc1", 0.1),
    Task("vtab/cifar100", "CIFAR-100", 10_000, 100, "acc1", 0.01, "vtab"),
    Task("vtab/clevr_count_all", "CLEVR Counts", 15_000, 8, "acc1", 0.125061, "vtab"),
    Task("vtab/clevr_closest_object_distance", "CLEVR Distance", 15_000, 6, "acc1", 0.19052, "vtab"),
    Task("country211", "Country211", 21_100, 211, "acc1", 0.004739),
    Task("vtab/dtd", "Describable Textures", 1_880, 47, "acc1", 0.021277, "vtab"),
    Task("vtab/eurosat", "EuroSAT", 5_400, 10, "acc1", 0.101483, "vtab"),
    Task("fgvc_aircraft", "FGVC Aircraft", 3_333, 100, "mean_per_class_recall", 0.01),
    Task("food101", "Food-101", 25_250, 101, "acc1", 0.009901),
    Task("gtsrb", "GTSRB", 12_630, 43, "acc1", 0.037604),
    Task("imagenet1k", "ImageNet 1k", 50_000, 1000, "acc1", 0.001, "imagenet"),
    Task("imagenet_sketch", "ImageNet Sketch", 50_889, 1000, "acc1", 0.001, "shift"),
    Task("imagenetv2", "ImageNet v2", 10_000, 1000, "acc1", 0.001, "shift"),
    Task("imagenet-a", "ImageNet-A", 7_500, 200, "acc1", 0.008056, "shift"),
    Task("imagenet-o", "ImageNet-O", 2_000, 200, "acc1", 0.006047, "shift"),
    Task("imagenet-r", "ImageNet-R", 30_000, 200, "acc1", 0.006163, "shift"),
    Task("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711, 4, "acc1", 0.295289, "vtab"),
    Task("mnist", "MNIST", 10_000, 10, "acc1", 0.10035),
    Task("objectnet", "ObjectNet", 18_574, 113, "acc1", 0.009481, "shift"),
    Task("vtab/flowers", "Oxford Flowers-102", 6_149, 102, "mean_per_class_recall", 0.009804, "vtab"),
    Task("vtab/pets", "Oxford-IIIT Pet", 3_669, 37, "mean_per_class_recall", 0.027027, "vtab"),
    Task("voc2007", "Pascal VOC 2007", 14_976, 20, "acc1", 0.154038),
    Task("vtab/pcam", "PatchCamelyon", 32_768, 2, "acc1", 0.5, "vtab"),
    Task("renderedsst2", "Rendered SST2", 1_821, 2, "acc1", 0.500001),
    Task("vtab/resisc45", "RESISC45", 6_300, 45, "acc1", 0.022342, "vtab"),
    Task("cars", "Stanford Cars", 8_041, 196, "acc1", 0.00516),
    Task("stl10", "STL-10", 8_000, 10, "acc1", 0.1),
    Task("sun397", "SUN397", 108_754, 397, "acc1", 0.004645, "vtab"),
    Task("vtab/svhn", "SVHN", 26_032, 10, "acc1", 0.117897, "vtab"),
    Task(
        "retrieval/flickr_1k_test_image_text_retrieval",
        "Flickr",
        1_000,
        None,
        "mean_recall@1",
        None,
        "retrieval",
        folder="flickr30k",
    ),
    Task(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        5_000,
        None,
        "mean_recall@1",
        None,
        "retrieval",
        folder="mscoco_captions",
    ),
    Task("misc/winogavil", "WinoGAViL", 3_563, None, "jaccard_score_10-12", 0.205, "retrieval", folder="winogavil"),
    Task("wilds/iwildcam", "iWildCam", 42_791, 182, "F1-macro_all", 0.143056),
    Task("wilds/camelyon17", "Camelyon17", 85_054, 2, "acc1", 0.5),
    Task("wilds/fmow", "FMoW", 22_108, 62, "acc_worst_region", 0.027193),
    Task("fairness/dollar_street", "Dollar Street", 3_503, 58, "acc_top5_wg", None),
    Task("fairness/geode", "GeoDE", 12_488, 40, "acc_wg", None),
)
"""Folders are those that DataComp's `download_evalsets.py` writes. The two retrieval sets are CLIP_benchmark's exports
of the same Karpathy test splits, for DataComp reads them from elsewhere; WinoGAViL is laid out as docs/evaluation.md
says."""

BY_NAME: Mapping[str, Task] = {name: task for task in TASKS for name in (task.folders[-1], task.key)}
"""Tasks by key and by folder."""

AGGREGATES: Mapping[str, tuple[str, ...]] = {
    "imagenet": tuple(task.key for task in TASKS if task.group == "imagenet"),
    "shifts": tuple(task.key for task in TASKS if task.group == "shift"),
    "vtab": tuple(task.key for task in TASKS if task.group == "vtab"),
    "retrieval": tuple(task.key for task in TASKS if task.group == "retrieval"),
    "average_of_38": tuple(task.key for task in TASKS),
}
"""Plain means of main figures, as DataComp reports them; one exists only where all of its tasks were evaluated."""


def named(name: str) -> Task:
    """The task called so; a name that is not in the table is that of a set's folder."""
    return BY_NAME.get(name) or Task(key=name, name=name)
