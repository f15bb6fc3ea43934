"""Which cells of a notebook answer what.

notebook            the cells of a file that was handed in
cell_text           what one cell is about
lab_text            what the lab's own cells say
locked_cells        the lab's cells put back where students edited, moved or deleted them
matching            for each exercise, the cells to run
left_out            cells that do not run any more, since they kept others from running
"""
