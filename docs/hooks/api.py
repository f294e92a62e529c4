"""Replace `<!-- api -->` by the reference of every public name of the package."""

import modeling_a2mim


def on_page_markdown(markdown: str, **_) -> str:
    return markdown.replace("<!-- api -->", reference()) if "<!-- api -->" in markdown else markdown


def reference() -> str:
    parts = []
    for name in modeling_a2mim.__all__:
        thing = getattr(modeling_a2mim, name)
        if not (thing.__doc__ or "").strip():
            raise ValueError(f"modeling_a2mim.{name}: has no docstring")
        parts.append(f"### {name}\n\n::: {thing.__module__}.{thing.__qualname__}\n")
    return "\n".join(parts)
