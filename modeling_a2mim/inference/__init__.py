"""Running a trained model over images: what goes through it, and tables of what comes out that survive a kill."""
