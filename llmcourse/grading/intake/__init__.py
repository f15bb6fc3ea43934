"""What was handed in, and by whom, read with suspicion: nothing of it is run, unpacked or followed.

files, archive      a folder or a zip that strangers filled
identity            whose a file is, by its name and the folders around it
companions          what lies beside the notebooks
submissions         all of it together: one submission a student
"""
