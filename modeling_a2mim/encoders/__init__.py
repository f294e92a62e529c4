"""How timm lays out an encoder: the maps it computes, where a token may enter, what is trained."""
