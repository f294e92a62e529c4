"""How timm lays out an encoder: its feature maps, where the mask token may enter, how it is built."""
