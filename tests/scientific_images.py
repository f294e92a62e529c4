"""Sets of images as satellites, clinics and instruments write them, small and seeded: two classes, told apart by their
brightness."""

import io
from pathlib import Path

import numpy as np
import tifffile
from datasets import Array3D, ClassLabel, Dataset, Features


COUNT, SHAPE = 12, (40, 48)
CLASSES = ("bright", "dark")
PATIENT = {  # which must be nowhere but in the files themselves
    "PatientName": "Planted^Patricia",
    "PatientID": "ID-4711-PLANTED",
    "PatientBirthDate": "19010203",
    "InstitutionName": "Planted Clinic",
    "StudyDescription": "planted study",
}


def scene(number: int, channels: int, low: float, high: float) -> np.ndarray:
    """(channels, height, width) float64 of an image: a gradient with noise, `CLASSES[number % 2]`."""
    generator = np.random.default_rng(number)
    height, width = SHAPE
    slope = np.linspace(0, 0.3, width) + np.linspace(0, 0.2, height)[:, None]
    tint = np.linspace(0, 0.1, channels)[:, None, None]
    shares = slope + tint + generator.uniform(0, 0.1, (channels, height, width)) + 0.3 * (number % 2 == 0)
    return low + shares * (high - low)


def path_of(folder: Path, number: int, suffix: str) -> Path:
    """Where an image of a set lies, in the folder of its class."""
    path = folder / CLASSES[number % 2] / f"scene_{number:02d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_tiffs(folder: Path, channels: int, dtype: str, low: float, high: float, count: int = COUNT) -> Path:
    """Planar TIFF of any channels and any type."""
    for number in range(count):
        values = scene(number, channels, low, high).astype(dtype)
        tifffile.imwrite(
            path_of(folder, number, ".tif"),
            values if channels > 1 else values[0],
            photometric="minisblack",
            **({"planarconfig": "separate"} if channels > 1 else {}),
        )
    return folder


def dicom(values: np.ndarray, **elements) -> bytes:
    """A file of (rows, columns) uint16 that uses 12 bits, of `PATIENT`, and with whatever else is wanted."""
    import pydicom

    found = pydicom.dataset.Dataset()
    for name, value in PATIENT.items():
        setattr(found, name, value)
    found.SOPClassUID, found.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    found.Rows, found.Columns = values.shape
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME2", 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    for name, value in elements.items():
        setattr(found, name, value)
    found.PixelData = values.astype("<u2").tobytes()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, enforce_file_format=True)
    return file.getvalue()


def write_dicoms(folder: Path, **elements) -> Path:
    """CT slices, of which every third is stored with its lowest value as white."""
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    for number in range(COUNT):
        values = scene(number, 1, 0, 4095).clip(0, 4095).astype(np.uint16)[0]
        turned = {"PhotometricInterpretation": "MONOCHROME1"} if number % 3 == 2 else {}
        values = 4095 - values if turned else values
        path_of(folder, number, ".dcm").write_bytes(dicom(values, **rescaled, **turned, **elements))
    return folder


def write_arrays(folder: Path, channels: int) -> Path:
    """A parquet file with a column of arrays (channels, height, width) uint16, in several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Array3D((channels, *SHAPE), "uint16"), "label": ClassLabel(names=list(CLASSES))})
    rows = {
        "image": [scene(number, channels, 100, 9000).astype(np.uint16) for number in range(COUNT)],
        "label": [number % 2 for number in range(COUNT)],
    }
    Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-0.parquet"), batch_size=4)
    return folder


def says_patient(data: bytes) -> bool:
    """Whether anything of the patient is in it."""
    return any(word in data for word in (*(value.encode() for value in PATIENT.values()), b"Patricia", b"4711"))


def contains_patient(folder: Path) -> list[str]:
    """The files below a folder in which anything of the patient is."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and says_patient(path.read_bytes())]
