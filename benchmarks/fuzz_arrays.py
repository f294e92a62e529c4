"""The undamaged files of `fuzz.py` that are no photographs: TIFF, NumPy, DICOM and others of 16 bits and more."""

import io
from collections.abc import Callable

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from sklearn.datasets import load_sample_images


UIDS = {"little": "1.2.1", "implicit": "1.2", "big": "1.2.2", "JPEG": "1.2.4.50", "lossless JPEG": "1.2.4.70"}
UIDS |= {"JPEG-LS": "1.2.4.80", "JPEG 2000": "1.2.4.90"}


def array_originals() -> dict[str, bytes]:
    """Files by their kinds, whose first word is the format."""
    grey = load_sample_images().images[0][100:196, 100:228].mean(axis=-1)
    deep = (grey * 16).astype(np.uint16)  # 12 bits
    bands = np.stack([deep + 100 * i for i in range(13)])
    stack = np.stack([np.roll(deep, 9 * i, axis=1) for i in range(3)])
    colour = np.ascontiguousarray(stack.transpose(1, 2, 0))
    files = {
        "TIFF": tiff(deep),
        "TIFF tiles": tiff(bands, planarconfig="separate", tile=(32, 32), compression="zlib", predictor=True),
        "TIFF chunky": tiff(bands.transpose(1, 2, 0), planarconfig="contig", compression="lzw", rowsperstrip=16),
        "TIFF BigTIFF": tiff(deep, bigtiff=True, compression="zstd", tile=(64, 64)),
        "TIFF float": tiff(deep.astype(np.float32) / 7, compression="zlib", predictor=3),
        "TIFF 12 bits": tiff(deep, bitspersample=12),
        "TIFF signed": tiff(deep.astype(np.int32) - 2000, byteorder=">", compression="packbits"),
        "TIFF JPEG 2000": tiff(deep, compression="jpeg2000", tile=(64, 64)),
        "TIFF JPEG": tiff(bands[:2].astype(np.uint8), planarconfig="separate", compression="jpeg", tile=(64, 64)),
        "TIFF pages": tiff(stack, metadata=None, compression="lzma"),
        "TIFF ImageJ": tiff(stack, imagej=True, metadata={"axes": "CYX"}),
        "TIFF OME": tiff(stack, ome=True, metadata={"axes": "ZYX"}),
        "NumPy": saved(np.save, deep),
        "NumPy channels": saved(np.save, bands.astype(">i4")),
        "NumPy pages": saved(np.save, np.asfortranarray(stack[:, None].repeat(2, 1).astype(np.float64))),
        "NumPy npz": saved(lambda file, array: np.savez(file, image=array), deep),
        "NumPy deflate": saved(lambda file, array: np.savez_compressed(file, image=array), bands),
        "DICOM little": dicom(deep, "little", RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40"),
        "DICOM implicit": dicom(deep.astype(np.int16), "implicit", PhotometricInterpretation="MONOCHROME1"),
        "DICOM big": dicom(deep, "big"),
        "DICOM frames": dicom(stack, "little", NumberOfFrames=3),
        "DICOM JPEG": dicom(grey.astype(np.uint8), "JPEG", imagecodecs.jpeg_encode),
        "DICOM lossless": dicom(deep, "lossless JPEG", lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12)),
        "DICOM JPEG-LS": dicom(deep, "JPEG-LS", imagecodecs.jpegls_encode),
        "DICOM JPEG 2000": dicom(deep, "JPEG 2000", jpeg2000),
        "PNG": imagecodecs.png_encode(colour),
        "PPM": b"P6 128 96 4095\n" + colour.astype(">u2").tobytes(),
        "JPEG2000": imagecodecs.jpeg2k_encode(colour, level=0, reversible=True),
        "NIfTI": nibabel.Nifti1Image(stack.transpose(2, 1, 0), np.eye(4)).to_bytes(),
    }
    return files


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **options})
    return file.getvalue()


def saved(save: Callable, array: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


def jpeg2000(array: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(array, level=0, codecformat="j2k", reversible=True, bitspersample=12)


def dicom(array: np.ndarray, syntax: str, encode: Callable | None = None, **elements) -> bytes:
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID, found.PatientName = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "Nobody"
    found.Rows, found.Columns = array.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = array.dtype.itemsize * 8
    found.BitsStored = 12 if array.dtype.itemsize == 2 and array.dtype.kind == "u" else found.BitsAllocated
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(array.dtype.kind == "i")
    for name, value in elements.items():
        setattr(found, name, value)
    stored = array.astype(array.dtype.newbyteorder(">")) if syntax == "big" else array
    found.PixelData = encapsulate([encode(array)]) if encode else stored.tobytes()
    found["PixelData"].VR = "OB" if encode else "OW"
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = f"1.2.840.10008.{UIDS[syntax]}"
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, enforce_file_format=True)
    return file.getvalue()
