"""The way in: raw files -> prepared data -> batches.

The words:

    file      what a user has: PNG, JPEG, DICOM, NIfTI, .npz, a table
    source    a layout of files (sources/): it yields items
    item      one image or scan on its way into the store, or why it is left out
    image     2-D (a film is an X-ray image as its file holds it), or 3-D of MedMNIST
    scan      a patient's sequences on one grid, prepared for segmentation
    volume    [D, H, W] voxels: of a NIfTI file, or of a prepared scan
    record    an image as it is prepared, and its row of the table
    table     table.csv, one row an image or scan
    sample    what a random-access source hands to the loader, as the model sees it
    batch     samples, stacked for the devices
    patient   a number; the unit of every split and interval
"""
