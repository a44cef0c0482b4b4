"""Entry point of the Spark job: the file that spark-submit, EMR Serverless and Glue start."""

import sys

from cdc_pipeline.spark.job.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
