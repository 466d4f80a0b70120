"""Formats of training data by name: `tools/prepare_data.py --format NAME`."""

from sphinx_jax.data.formats import (
    chats,
    coco,
    documents_layout,
    flickr_entities,
    image_folders,
    pair_tables,
    prepared,
    questions,
    refcoco,
    tar_shards,
    text_in_pictures,
    texts,
    visual_genome,
)
from sphinx_jax.data.formats.found import Format

FORMATS: dict[str, Format] = {
    # pictures with texts of the web, and texts alone
    "laion": tar_shards.LAION,
    "laion-coco": tar_shards.LAION_COCO,
    "coyo": tar_shards.LAION,
    "datacomp": tar_shards.LAION,
    "pairs-parquet": pair_tables.PAIRS,
    "cc3m": pair_tables.CC3M,
    "cc12m": pair_tables.CC12M,
    "documents": texts.DOCUMENTS,
    "prepared": prepared.PREPARED,
    # conversations
    "chats": chats.CHATS,
    # annotated pictures
    "coco-captions": coco.CAPTIONS,
    "coco-instances": coco.INSTANCES,
    "coco-keypoints": coco.KEYPOINTS,
    "crowdpose": coco.CROWDPOSE,
    "publaynet": documents_layout.PUBLAYNET,
    "doclaynet": documents_layout.DOCLAYNET,
    "vg-regions": visual_genome.REGIONS,
    "vg-relationships": visual_genome.RELATIONSHIPS,
    "vg-questions": visual_genome.QUESTIONS,
    "refcoco": refcoco.REFCOCO,
    "flickr-entities": flickr_entities.FLICKR_ENTITIES,
    "textocr": text_in_pictures.TEXTOCR,
    "icdar2015": text_in_pictures.ICDAR,
    "imagenet": image_folders.IMAGENET,
    # questions
    "vqav2": questions.VQAV2,
    "okvqa": questions.OKVQA,
    "gqa": questions.GQA,
    "ocrvqa": questions.OCRVQA,
    "textvqa": questions.TEXTVQA,
    "docvqa": questions.DOCVQA,
    "chartqa": questions.CHARTQA,
    "scienceqa": questions.SCIENCEQA,
}
