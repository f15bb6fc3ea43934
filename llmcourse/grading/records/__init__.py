"""Points that are kept, and points that are shown; nothing here decides any.

gradebook, adjustments, folder      kept: the database, what an instructor changes, where it lies
reports, feedback, overview         shown as files: tables, a page a student, the instructor's page
progress, summary                   shown on a terminal, while a batch runs and when it has ended
"""
