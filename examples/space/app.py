"""The Space: check any published model, judge a claim. Everything is in `hf_watermark.demo`."""

from hf_watermark.demo import build_demo, launch


demo = build_demo(public=True)

if __name__ == "__main__":
    launch(demo)
