"""`python -m numpyro_diffusion` is the command line."""

from numpyro_diffusion.cli import main

if __name__ == "__main__":
    main()
