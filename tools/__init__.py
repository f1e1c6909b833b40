"""What the Makefile and CI run: set-up of environments, builds and checks of wheels.

All of it runs on the Python that is there before anything is installed: standard library only.
"""
