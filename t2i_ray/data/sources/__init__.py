"""Sources: one file each, all alike to whoever reads them."""

from t2i_ray import config
from t2i_ray.data.sources.base import Source
from t2i_ray.data.sources.coco import CocoSource
from t2i_ray.data.sources.cub import CubSource
from t2i_ray.data.sources.emoji import EmojiSource
from t2i_ray.data.sources.folder import FolderSource
from t2i_ray.data.sources.hdf5 import Hdf5Source
from t2i_ray.data.sources.oxford import OxfordSource
from t2i_ray.data.sources.parquet import ParquetSource
from t2i_ray.data.sources.place import errors_of_place, resolved
from t2i_ray.data.sources.synthetic import SyntheticSource
from t2i_ray.data.sources.webdataset import WebDatasetSource

__all__ = ["Source", "open_source", "resolved"]


def open_source(source: config.Source, load_size: int, reach: config.Storage) -> Source:
    """The source of a config; it is still to be looked through.

    Args:
        source: which.
        load_size: height and width at which pictures are drawn, if they are drawn.
        reach: endpoint and region of S3, for a source that lies there.

    Raises:
        UserError: it cannot be used, as far as that is known yet.
    """
    with errors_of_place():
        match source:
            case config.SyntheticFlowers():
                return SyntheticSource(source, load_size)
            case config.Emoji():
                return EmojiSource(source, load_size)
            case config.Folder():
                return FolderSource(source, reach)
            case config.Oxford102():
                return OxfordSource(source, reach)
            case config.Cub200():
                return CubSource(source, reach)
            case config.Hdf5():
                return Hdf5Source(source, reach)
            case config.Coco():
                return CocoSource(source, reach)
            case config.Parquet():
                return ParquetSource(source, reach)
            case config.WebDataset():
                return WebDatasetSource(source, reach)
