"""The web page of `a2mim app`: what models make of an image that is uploaded, in one tab for each thing they do."""
