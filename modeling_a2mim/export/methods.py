"""Which method pre-trained an encoder, as far as its configuration or record tells, and how a card names and cites it.

A method is a phrase with the names of `PAPERS` in it: `A2MIM`, `SimMIM` or `MIXTURE`, with or without `NORMALISED`, or
`EITHER`; `None` if nothing tells.
"""

import re

from ..configuration_a2mim import A2MIMConfig
from ..pretrained import MASKED


MIXTURE = "a mixture of A2MIM and SimMIM"
EITHER = "A2MIM or SimMIM"  # which of them is not recorded
NORMALISED = " with normalised pixels as the target"
PAPERS = {"A2MIM": "2205.13943", "SimMIM": "2111.09886"}  # on arXiv
BIBTEX = {
    "A2MIM": """@inproceedings{li2023a2mim,
  title = {Architecture-Agnostic Masked Image Modeling -- From {ViT} back to {CNN}},
  author = {Li, Siyuan and Wu, Di and Wu, Fang and Zang, Zelin and Li, Stan Z.},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}""",
    "SimMIM": """@inproceedings{xie2022simmim,
  title = "{SimMIM}: A Simple Framework for Masked Image Modeling",
  author = {Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang
            and Dai, Qi and Hu, Han},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}""",
}


def method_of(config: A2MIMConfig) -> str:
    """The method that a pre-training model has the settings of."""
    simmim = {"mask_fill": "none", "mask_token_mode": "replace"}
    shared = [getattr(config, name) == value for name, value in simmim.items()]
    target = NORMALISED if config.target == "normalised" else ""
    if all(shared) and config.spatial_loss == "l1" and not config.frequency_loss_weight:
        return f"SimMIM{target}"
    return f"{MIXTURE if any(shared) else 'A2MIM'}{target}"


def recorded_method(record: dict) -> str | None:
    """The method of the last run of masked image modelling that a record (`records`) knows of."""
    earlier = record.get("earlier")
    for run in (record, *reversed(earlier if isinstance(earlier, list) else ())):
        if isinstance(run.get("method"), str):
            return run["method"]
        if run.get("task") == MASKED:
            return EITHER
    return None


def names_in(method: str | None) -> list[str]:
    """The keys of `PAPERS` that a method names."""
    return [name for name in PAPERS if name in (method or "")]


def linked(method: str) -> str:
    """The method in Markdown, with links to its papers."""
    return re.sub("|".join(PAPERS), lambda name: f"[{name[0]}](https://arxiv.org/abs/{PAPERS[name[0]]})", method)


def method_tags(method: str | None) -> list[str]:
    """The tags of the Hub for it."""
    names = names_in(method)
    tags = [*map(str.lower, names), "masked-image-modeling", *(f"arxiv:{PAPERS[name]}" for name in names)]
    return tags if names else []


def made_from(record: dict, method: str | None) -> str:
    """How a model for a task was made, as the end of "a classifier, ...": `trained from scratch`, `fine-tuned from
    ...`; empty if nothing is known."""
    task, base = record.get("task"), record.get("base_model")
    if task == "training from scratch":
        return task.replace("training", "trained")
    if not (task or base or method):
        return ""
    by = f" pre-trained by {MASKED} ({linked(method)})" if method else ""
    how = "a linear probe of" if task == "linear probing" else "fine-tuned from"
    start = (record.get("start") or "an encoder").removesuffix(f" pre-trained by {MASKED}")
    return f"{how} {f'`{base}`' if base else start}{by}"
